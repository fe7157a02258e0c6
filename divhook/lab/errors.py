"""The one error of the lab: what is wrong and what to do, in words for a person."""


class LabError(Exception):
    """The lab cannot do what was asked. The text names the cause and, where there is one, the way out."""
