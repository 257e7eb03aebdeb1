"""What all tests share."""

import hypothesis

# A real network takes its time, more of it on a busy machine, and how long it takes is not what is tested.
hypothesis.settings.register_profile("course", deadline=None)
hypothesis.settings.load_profile("course")
