"""The error that ends a command with one line for a person."""


class CommandError(Exception):
    """The command can't do what was asked. The text says what is wrong and what to do; the exit code is 1."""


class UsageError(CommandError):
    """The options contradict each other, or one is missing. The exit code is 2, as for what argparse itself finds."""
