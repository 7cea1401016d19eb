"""The same examples in every run of the suite, here and in CI: a failure is found again by running it again."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "trajectories",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=min(20, settings.default.max_examples),  # fewer under --fast
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
settings.load_profile("trajectories")
