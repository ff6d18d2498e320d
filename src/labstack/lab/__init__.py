"""The tasks of `./run_all.sh` that bring up, watch and stop a lab, in containers or as processes of this machine.

All but `processes` run on a bare Python with the standard library: a machine with a container engine needs no more.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
STATE = ROOT / ".lab"
