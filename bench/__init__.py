"""Benchmarks: this project beside what one would use instead, on the same machine in the same run.

``python -m bench --help`` runs them; docs/performance.md explains what they measure and what came out.
"""

import os

from modelcore import threads

# As the pipeline sets it for its stages, for everyone who is measured; before torch is imported.
for _name, _value in threads.SHARED_CORES.items():
    os.environ.setdefault(_name, _value)
