"""The one exception tree of the project.

Every message says what is wrong, what was found against what was expected, and what to do next.
`exit_code` is what the `pi05` command and the pipeline's stages return for it, so that a script
can tell a broken file from a wrong input without reading text.
"""


class Pi05Error(Exception):
    """Root of every error this project raises on purpose."""

    exit_code = 1


class ParamsError(Pi05Error):
    """params.yaml (or a file it names) asks for something unknown or impossible."""

    exit_code = 2


class CheckpointError(Pi05Error):
    """A checkpoint is not the pi0.5 that it should be: layout, names, shapes, values."""

    exit_code = 3


class ObservationError(Pi05Error):
    """An observation does not fit the policy: cameras, image shape, state, prompt."""

    exit_code = 4


class BundleError(Pi05Error):
    """A bundle's manifest or files are not what they claim to be."""

    exit_code = 5


class TargetError(Pi05Error):
    """This machine, or this bundle, cannot serve the target that was asked for."""

    exit_code = 6


class EngineError(Pi05Error):
    """An engine could not be built, loaded or run, or produced a non-finite number."""

    exit_code = 7


class GateError(Pi05Error):
    """A gate did not pass, or could not run, which counts the same."""

    exit_code = 8


class DeviceError(Pi05Error):
    """This device cannot do what was asked with its bundles: no space, no such bundle, wrong state."""

    exit_code = 9


class NetworkError(Pi05Error):
    """The Hub could not be reached, refused, or sent something else than what was asked for."""

    exit_code = 10
