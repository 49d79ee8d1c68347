"""The command itself: its groups, its errors in one line each, its exit codes.

0 done; 1 something failed; 2 wrong usage or input; 3 no server answers; 130 interrupted.
"""

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from limner.cli import (
    cohort,
    deidentify,
    features,
    gateway,
    models,
    phantom,
    predict,
    pull,
    report,
    score,
    select,
    simulate,
    train,
)
from limner.cli.common import FAILED, NOTICE, UNAVAILABLE, Connections, note
from limner.endpoint import Tls
from limner.errors import InvalidInputError, LimnerError, NotFoundError, UnavailableError
from limner.imaging.errors import ImageError
from limner.imaging.quiet import hush_dicom
from limner.token import TokenFile

WRONG_INPUT = 2

app = typer.Typer(
    name="limner",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("phantom")(phantom.phantom)
app.command("select")(select.select)
app.command("deidentify")(deidentify.deidentify)
app.add_typer(cohort.app, name="cohort")
app.add_typer(train.app, name="train")
app.command("predict")(predict.predict)
app.command("score")(score.score)
app.command("merge")(score.merge)
app.command("features")(features.features)
app.command("simulate")(simulate.simulate)
app.command("report")(report.report)
app.add_typer(models.app, name="models")
app.add_typer(gateway.app, name="gateway")
app.command("pull")(pull.pull)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"limner {version('limner')}, {NOTICE}")
        raise typer.Exit


@app.callback()
def limner(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    tls: Annotated[
        bool, typer.Option("--tls", envvar="LIMNER_TLS", help="Reach the server by TLS; the other three imply it.")
    ] = False,
    tls_ca: Annotated[
        Path | None,
        typer.Option(envvar="LIMNER_TLS_CA", help="PEM authorities of its certificate. Default: this machine's."),
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(envvar="LIMNER_TLS_CERTIFICATE", help="PEM certificate to show where it asks.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(envvar="LIMNER_TLS_KEY", help="Its PEM key.")] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="LIMNER_TOKEN_FILE", help="File of the bearer token that says who you are; or LIMNER_TOKEN itself."
        ),
    ] = None,
) -> None:
    """Train, serve and explain MRI outcome models. Research use only, not for diagnostic use.

    \b
    From nothing to an explanation, with `limner-server` running:
      limner phantom cohort/
      limner cohort import cohort/ --name demo --labels cohort/labels.csv
      limner train demo cervix
      limner predict cervix cohort/PH-000
      limner simulate cervix demo --out simulated/
      limner report cervix demo --out report/ --images cohort/

    Every command takes --json, and --server HOST:PORT[,HOST:PORT...] (or LIMNER_SERVER).

    \b
    The options of TLS, and the token that says who you are, come before the command:
      limner --tls-ca hospital.pem --token-file token predict cervix study/ --server limner.example:443
    """  # noqa: D301  \b keeps the lines apart
    wanted = tls or tls_ca or tls_certificate or tls_key
    Connections.tls = Tls(tls_ca, tls_certificate, tls_key) if wanted else None
    Connections.token = TokenFile(token_file) if token_file else None


def main() -> None:
    """Run the command and exit; an error ends in one line on standard error."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC tells of failed handshakes in its own words
    hush_dicom()
    try:
        app()
    except LimnerError as error:
        note("error: " + " ".join(str(error).split()))
        sys.exit(_exit_code(error))
    except ImageError as error:
        note(f"error: {error}")
        sys.exit(WRONG_INPUT)
    except (OSError, ModuleNotFoundError) as error:
        note(f"error: {error}")
        sys.exit(FAILED)


def _exit_code(error: LimnerError) -> int:
    match error:
        case InvalidInputError() | NotFoundError():
            return WRONG_INPUT
        case UnavailableError():
            return UNAVAILABLE
        case _:
            return FAILED


if __name__ == "__main__":
    main()
