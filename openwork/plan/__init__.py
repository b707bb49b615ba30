"""What will be sparse, how sparse, and why: the table shown before anything changes.

:func:`plan` walks a model, decides which parameters a method may thin, and gives each an exact number of kept connections.
It is printed for people, and every verb works from it, so what is shown is what is done.
"""

from openwork.plan.planning import plan, wanted_total
from openwork.plan.table import Plan, Row, collapse

__all__ = ["Plan", "Row", "collapse", "plan", "wanted_total"]
