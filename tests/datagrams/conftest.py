"""Two hosts, as for streams."""

from __future__ import annotations

from tests.chunnels.conftest import Capture as Capture
from tests.chunnels.conftest import Pair as Pair
from tests.chunnels.conftest import capture as capture
from tests.chunnels.conftest import cluster_key as cluster_key
from tests.chunnels.conftest import pair as pair
