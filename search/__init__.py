"""Finding schedules: data, training, the search itself and its command line."""

import os

# Threads that spin while they wait for work (libgomp's default) starve each other as soon as there are
# more of them than cores: a training step of vim_nano on 2 busy cores then takes 10 s instead of 0.3 s.
# It must be set before torch is loaded; the workers of a search inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
