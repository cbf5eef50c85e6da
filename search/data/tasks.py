"""The tasks, by name."""

from search.data.classification import CLASSIFICATION
from search.data.segmentation import SEGMENTATION
from search.data.task import Task
from spaces.errors import UnknownNameError

TASKS: dict[str, Task] = {task.name: task for task in (CLASSIFICATION, SEGMENTATION)}


def task_named(name: str) -> Task:
    """Return the task of that name; UnknownNameError if there is none.

    >>> task_named("segmentation").metric.name
    'miou'
    """
    if name not in TASKS:
        raise UnknownNameError("task", name, TASKS)
    return TASKS[name]
