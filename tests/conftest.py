"""What all tests share."""

import search  # noqa: F401  (before torch: it makes threads wait without spinning, which busy machines need)
