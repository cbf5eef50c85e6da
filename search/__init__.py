"""Finding schedules: data, training, the search itself and its command line."""

import os

# Threads that spin while they wait for work (libgomp's default) starve each other as soon as there are
# more of them than cores: a training step of vim_nano on 2 busy cores then takes 10 s instead of 0.3 s.
# It must be set before torch is loaded; the workers of a search inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Ray reads these when it is imported: nothing on stderr, no files for each trial, no statistics sent home, and
# the signals left to us.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_CHDIR_TO_TRIAL_DIR="0",
    RAY_AIR_NEW_OUTPUT="0",
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
    TUNE_DISABLE_SIGINT_HANDLER="1",
    TUNE_GLOBAL_CHECKPOINT_S="1000000000",
    TUNE_PRINT_ALL_TRIAL_ERRORS="0",
    TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S="1000000000",
)

# Ray Train reads these when it begins: look after the workers more often than every 2 s, give them more than a minute
# to start on a busy machine, and leave out an actor that warns of nodes about to go: a lost worker ends it anyway.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
