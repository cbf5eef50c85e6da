"""What went wrong, in words that fit into a table."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, cut to a length that a table can bear."""
    lines = str(error).strip().splitlines()
    line = lines[0][:500] if lines else "no message"
    return line.encode(errors="replace").decode().replace("\0", "?")  # what any database takes


# What torch's CPU allocator, C++, CUDA and cuBLAS say, each in a RuntimeError.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory", "ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch means that memory ran out; for the CPU it has no class of its own."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)
