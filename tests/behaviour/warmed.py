"""All that a search imports, for a server whose forked processes then begin at once; it computes nothing."""

import pkgutil
from importlib import import_module

import matplotlib.backends.backend_agg
import networkx
import optuna
import scipy.optimize
import scipy.stats
import sklearn.datasets
import torch._dynamo

import nas
import nas.cli

for name in nas.__all__:
    getattr(nas, name)
for module in pkgutil.iter_modules(nas.cli.__path__, "nas.cli."):
    import_module(module.name)
assert all((matplotlib, networkx, optuna, scipy, sklearn, torch))
