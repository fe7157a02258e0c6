"""sans-IO core: bytes, the time and tables in; frames, table updates and verdicts out.

Nothing below this package opens a socket, reads a clock or draws a random number.
"""
