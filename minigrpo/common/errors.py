"""The errors that end a program with one sentence instead of a traceback. All others are bugs and keep their traceback."""


class UserError(ValueError):
    """Something the user can mend: a config, a file, an argument, a module of their own. The message says what and where."""


class TaskError(RuntimeError):
    """The machinery that judges completions failed (a database server, say), not a completion: never a reward."""
