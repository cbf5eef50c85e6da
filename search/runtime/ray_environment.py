"""The environment variables that Ray runs under while this project uses it.

Ray and Tune read all of them when they start or run, none when they are imported. Those that Tune's and Train's
workers need are passed on to them, also on other nodes of a cluster.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

# What a user has set differently wins.
DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the default of recent versions; earlier ones warn while it is unset
    "RAY_AIR_NEW_OUTPUT": "0",  # no tables of trials
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no files for each trial
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # the store is the truth, so Tune need not save its state
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",
    # Start-up on a busy machine takes longer than Train's minute, and a lost worker should not go unnoticed for 2 s.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor that warns of nodes about to go; losing a worker ends it
}

# A search would break with other values, so these override the user's.
REQUIRED = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `Interruption` answers the signals
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # the user's relative paths start from the driver's folder
}


@contextmanager
def ray_environment() -> Iterator[None]:
    """Set the variables while Ray runs, and restore the user's afterwards."""
    names = [*DEFAULTS, *REQUIRED]
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: value for name, value in DEFAULTS.items() if before[name] is None} | REQUIRED)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
