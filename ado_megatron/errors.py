"""Every exception of this package that a caller may want to tell apart."""


class UserError(Exception):
    """Something the user can put right: bad data, bad options, a run directory of another configuration.

    The message is one sentence: what is wrong, where, and what to do. The command line prints it without a traceback
    and exits with code 2.
    """


class SidecarError(UserError):
    """The state file beside a checkpoint is missing, damaged, or belongs to another run or version."""


class ScheduleTimeout(RuntimeError):
    """A reader waited for a row of the table past the deadline: the planner stopped, or plans too few rows ahead."""


class StaleRow(RuntimeError):
    """A reader asked for a row that the table no longer holds."""


class RanksDisagree(RuntimeError):
    """Ranks hold different options, data or tables: training on would mix different streams."""
