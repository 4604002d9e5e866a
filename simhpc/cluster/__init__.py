"""Running tasks as jobs. Only this package knows submitit."""
