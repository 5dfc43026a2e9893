"""The thin script that `ray submit cluster.yaml harness/__main__.py -- run BENCHMARK` uploads and runs.

Only this file travels with that command; the package itself is on the nodes already (`cluster.yaml`).
"""

from harness.cli import main

if __name__ == "__main__":
    main()
