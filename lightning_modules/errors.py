"""Every error a user can cause, as one tree. The command line prints the message alone and exits with 2.

A message says the rule, the value that broke it, and the remedy.

    UserError
    ├── ConfigError       a value, name or combination in the configuration
    ├── DataError         data or checkpoints that are missing or do not fit
    ├── DiscoveryError    the structure of a model cannot be found within its limits
    ├── PlanError         a plan that removes nothing, empties a group, or names what is not there
    ├── TrialTimeoutError a trial that took longer than the configuration allows
    └── StorageError      a disk or a database does not take what is written
"""


class UserError(Exception):
    """Something the user can mend; the message says how."""


class ConfigError(UserError):
    """A value, a name or a combination in the configuration is wrong."""


class DataError(UserError):
    """Data or a checkpoint is missing, or does not fit the model."""


class DiscoveryError(UserError):
    """The structure of a model could not be found within its limits of time and memory."""


class PlanError(UserError):
    """A plan removes nothing, empties a group, or names groups the model does not have."""


class TrialTimeoutError(UserError):
    """A trial took longer than the configuration allows."""


class StorageError(UserError):
    """A disk or a database does not take what is written: no trial's fault, the run stops and can be resumed."""
