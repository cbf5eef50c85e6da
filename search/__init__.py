"""Finding schedules: data, training, the search itself and its command line."""

import os

# Threads that spin while they wait for work (libgomp's default) starve each other as soon as there are
# more of them than cores: a training step of vim_nano on 2 busy cores then takes 10 s instead of 0.3 s.
# libgomp reads this when torch is loaded, which any module of this package may do; workers inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
