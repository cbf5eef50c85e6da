"""Error messages that fit into a table, and errors that mean a lack of memory."""


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, cut to 500 characters, as text that any database takes.

    >>> first_line(ValueError("two lines\nin one message"))
    'two lines'
    """
    lines = str(error).strip().splitlines()
    line = lines[0][:500] if lines else "no message"
    return line.encode(errors="replace").decode().replace("\0", "?")


# Messages of torch's CPU allocator, C++, CUDA and cuBLAS, each in a RuntimeError.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory", "ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch means that memory ran out; on the CPU it has no class of its own."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)
