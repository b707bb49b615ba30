"""Small real data sets and small models: what the demo, the comparisons and the tests work on.

- :mod:`openwork.tasks.task`: a data set cut into training, validation and test.
- :mod:`openwork.tasks.registry`: ``get("digits")`` and the names there are.
- data: :mod:`~openwork.tasks.digits`, :mod:`~openwork.tasks.mnist` (also Fashion-MNIST),
  :mod:`~openwork.tasks.cifar10`, :mod:`~openwork.tasks.tiny_shakespeare`, :mod:`~openwork.tasks.wikitext2`; made:
  :mod:`~openwork.tasks.reber`;
  :mod:`~openwork.tasks.sources` finds, checks and downloads their official files.
- models: :mod:`~openwork.tasks.mlp`, :mod:`~openwork.tasks.convnet`, :mod:`~openwork.tasks.resnet`,
  :mod:`~openwork.tasks.gpt`, :mod:`~openwork.tasks.graph_network`; :mod:`~openwork.tasks.initial` draws their
  weights from a seed.
- :mod:`openwork.tasks.training`: ``fit`` and ``evaluate``.
"""

from openwork.tasks.models import model
from openwork.tasks.registry import get, names
from openwork.tasks.task import Split, Task
from openwork.tasks.training import Metrics, Run, evaluate, fit

__all__ = ["Metrics", "Run", "Split", "Task", "evaluate", "fit", "get", "model", "names"]
