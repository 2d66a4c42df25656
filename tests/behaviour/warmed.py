"""All that a search imports, for a server whose forked processes then begin at once; it computes nothing."""

import matplotlib.backends.backend_agg
import networkx
import optuna
import scipy.optimize
import scipy.stats
import sklearn.datasets
import torch._dynamo

import nas
import nas.__main__

for name in nas.__all__:
    getattr(nas, name)
assert all((matplotlib, networkx, optuna, scipy, sklearn, torch))
