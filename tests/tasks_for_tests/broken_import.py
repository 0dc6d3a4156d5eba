"""A task module that needs a package which nobody has."""

import a_package_that_is_not_there  # noqa: F401
