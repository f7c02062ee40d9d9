"""Pictures if matplotlib is installed, and a message if it is not."""

import sys


def drawing(file=None):
    """Returns the module `plots`, or prints a message and returns None without matplotlib.

    Args:
        file: where the message is printed; standard output by default.
    """
    try:
        from tf_rigl.experiments import plots
    except ModuleNotFoundError as error:
        message = f"No pictures are drawn ({error}): pip install 'tf_rigl[plots]'"
        print(message, file=file or sys.stdout, flush=True)
        return None
    return plots
