"""Every error that a user can cause, as one tree.

The command line prints only the message and exits with 2. A message gives the rule, the value that
broke it, and the remedy.

    UserError
    ├── ConfigError       a value, name or combination in the configuration
    ├── DataError         data or checkpoints that are missing or do not fit
    ├── DiscoveryError    the structure of a model cannot be found within its limits
    ├── PlanError         a plan that removes nothing, empties a group, or names unknown groups
    ├── TrialTimeoutError a trial that took longer than the configuration allows
    └── StorageError      a disk or a database that does not accept a write
"""


class UserError(Exception):
    """An error that the user can mend. The message says how."""


class ConfigError(UserError):
    """A value, a name or a combination in the configuration is wrong."""


class DataError(UserError):
    """Data or a checkpoint is missing, or does not fit the model."""


class DiscoveryError(UserError):
    """The structure of a model could not be found within its limits of time and memory."""


class PlanError(UserError):
    """A plan removes nothing, empties a group, or names groups that the model does not have."""


class TrialTimeoutError(UserError):
    """A trial took longer than the configuration allows."""


class StorageError(UserError):
    """A disk or a database does not accept a write.

    This is no trial's fault: the run stops, and can be resumed.
    """
