"""``matloom launch``: runs over several hosts."""

from __future__ import annotations

import typer

from launch.check_cli import launch_check
from launch.estimate_cli import estimate
from launch.plan_cli import plan
from launch.run_cli import ResumeCommand, launch_run
from launch.stage_cli import stage

launch_app = typer.Typer(help="Start runs on one host or many, and plan them.", no_args_is_help=True)
launch_app.command("run", cls=ResumeCommand)(launch_run)
launch_app.command("check")(launch_check)
launch_app.command("estimate")(estimate)
launch_app.command("stage")(stage)
launch_app.command("plan")(plan)
