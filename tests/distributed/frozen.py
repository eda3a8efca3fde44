"""Imported last by the server that ranks are forked from: what it has imported is not looked through for garbage again.

Every full collection in a rank would otherwise visit, and so copy, the million objects that it shares with the server;
DeepSpeed's ZeRO 3 collects often.
"""

from __future__ import annotations

import gc

gc.collect()
gc.freeze()
