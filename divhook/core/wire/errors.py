"""The one exception of all parsers of hostile bytes."""

from divhook.core.reasons import DropReason


class WireError(ValueError):
    """The bytes are not what the header says. `reason` is the drop reason that is counted."""

    def __init__(self, reason: DropReason, detail: str) -> None:
        super().__init__(f"{reason.name.lower()}: {detail}")
        self.reason = reason
