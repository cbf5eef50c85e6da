"""The warning by which a data set says what users should know of it."""


class DataNote(UserWarning):
    """One line on a split, such as how many files are left out. The command line prints it as a note."""
