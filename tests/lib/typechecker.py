"""The runtime type checker behind the shape checks."""

from beartype import BeartypeConf, beartype

#: As mypy reads the same annotations: an int may stand where a float is asked for.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
