"""What goes wrong with links."""


class LinkError(Exception):
    """A link is not there, or cannot be used for what was asked. The text is meant for a person."""
