"""`python -m tf_rigl` is `tf-rigl`."""

import sys

from tf_rigl.experiments.cli import main

sys.exit(main())
