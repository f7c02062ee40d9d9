"""`python -m tf_rigl` is `tf-rigl`."""

import sys

from tf_rigl.cli import main

sys.exit(main())
