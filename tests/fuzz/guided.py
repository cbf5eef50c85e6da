"""Coverage-guided mutation by atheris, which is no dependency: `pip install atheris`."""

import sys
from random import Random

from tests.fuzz.runner import problem_with
from tests.fuzz.targets import Target


def guide(target: Target, inputs: int) -> int:
    """Fuzz one target; libFuzzer keeps what reaches new code, and this module's mutations change it."""
    try:
        import atheris
    except ImportError:
        sys.exit("--guided needs atheris: pip install atheris")
    specimens = target.specimens()

    def read(content: bytes) -> None:
        if problem := problem_with(target, content or specimens[0]):
            print(f"{content[:2000]!r}\n{problem}", flush=True)
            raise RuntimeError(problem)

    def change(content: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        return target.mutation(random, content or random.choice(specimens))[:most]

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-atheris_runs={inputs}", "-max_len=300000"], read, custom_mutator=change)
    atheris.Fuzz()
    return 0
