"""The results of a search: the store of evaluations, the Pareto front, exports, plots and the report.

Importing this package loads no database or plotting library; the modules that need one import it.
"""

from results.pareto import hypervolume, pareto_front
from results.records import Confirmation, Evaluation, FineTune, Study, StudySpec

__all__ = ["Confirmation", "Evaluation", "FineTune", "Study", "StudySpec", "hypervolume", "pareto_front"]
