"""A lock on a file, of whose holders each is an object of its own, whatever other libraries make of `filelock`."""

from filelock import FileLock


class Lock(FileLock):
    """Importing lmms-eval makes one object of all `FileLock`s of a path, whatever they ask for: the same process could take one twice."""
