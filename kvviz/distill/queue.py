"""A matrix's queue from outside, as a page does it: start its process, stop it, go on with it.

The process is `kvviz ab FOLDER` in a session of its own; a matrix has one at a time.
"""

from __future__ import annotations

from kvviz.distill import launch
from kvviz.distill.matrix import Matrix
from kvviz.distill.problems import RunError
from kvviz.distill.status import locked
from kvviz.distill.supervise import refuse_if_alive


def launch_matrix(matrix: Matrix) -> None:
    """Start the process that makes a matrix's runs.

    Raises:
        RunBusy: it has one. RunError: the system starts none. RunGone: its folder is not there.
        ConfigError: its matrix.yaml cannot be used.
    """
    _ = matrix.config
    with locked(matrix.folder):
        refuse_if_alive(matrix.process, "start")
        matrix.process.clear_stop()
        launch.start_process(matrix.process, [*launch.PROGRAM, "ab", str(matrix.folder)])


def resume_matrix(matrix: Matrix) -> None:
    """Go on with what is not finished, runs that failed among them.

    Raises:
        RunError: all its runs are finished. As `launch_matrix`.
    """
    if all(cell.state is not None and cell.state.status == "finished" for cell in matrix.cells()):
        raise RunError(
            f"Cannot resume {matrix.name}.",
            "It is finished: so are all its runs.",
            "Start a new matrix, with other arms or seeds.",
        )
    launch_matrix(matrix)


def stop_matrix(matrix: Matrix) -> None:
    """Ask the queue, and the runs that live, to stop. Does not wait: the queue ends a run that does not heed it.

    Raises:
        RunGone: its folder is not there. ConfigError: its matrix.yaml cannot be used; the queue was asked all the same.
    """
    # Left in the folder of a dead queue it would do no harm: whoever starts the next one takes it back.
    matrix.process.request_stop()
    for cell in matrix.cells():
        if cell.state is not None and cell.state.alive:
            cell.run.request_stop()
