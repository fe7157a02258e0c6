"""Real packets."""


def captured_packets() -> list[bytes]:
    return []
