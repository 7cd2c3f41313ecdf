"""What values of fields are refused, in words that begin with the field."""


def require(condition: bool, message: str) -> None:
    """Raise ValueError with the message if it is not so."""
    if not condition:
        raise ValueError(message)


def at_least(section: object, least: int, *names: str) -> None:
    """Raise ValueError for a field that is less; none is allowed."""
    for name in names:
        value = getattr(section, name)
        require(value is None or value >= least, f"{name} must be at least {least}, got {value}")


def share(section: object, name: str) -> None:
    """Raise ValueError for a field that is no share of a whole."""
    value = getattr(section, name)
    require(0 <= value < 1, f"{name} must be at least 0 and below 1, got {value}")
