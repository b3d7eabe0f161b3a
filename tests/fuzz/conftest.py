"""`make fuzz`: random inputs against naive references. The examples are the same in every run.

Each finding is kept as an ordinary test beside the tests of its part.
"""

from hypothesis import HealthCheck, settings

settings.register_profile("seeded", derandomize=True, database=None, deadline=None,
                          suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
settings.load_profile("seeded")
