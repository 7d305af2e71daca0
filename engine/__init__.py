"""WF Engine. Only the version lives here: this module runs before every other import of the package."""

__version__ = "0.1.0"
