"""Users and what they may do, through the API of the running server."""

import getpass
import os
import sys
from typing import Any

from tracking_server.errors import OperatorError, one_line
from tracking_server.settings import ADMIN_PASSWORD, LEAST_PASSWORD, check_address, port


class Users:
    """The users of a running server.

    ``MLFLOW_TRACKING_URI`` names the server, without it the one in this container; ``MLFLOW_TRACKING_USERNAME`` and
    ``MLFLOW_TRACKING_PASSWORD`` an administrator, without them `admin` with the password of the first start.
    """

    def __init__(self) -> None:
        if "MLFLOW_TRACKING_URI" not in os.environ:
            os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port()}"
        check_address("MLFLOW_TRACKING_URI", os.environ["MLFLOW_TRACKING_URI"])
        os.environ.setdefault("MLFLOW_TRACKING_USERNAME", "admin")
        if password := os.environ.get(ADMIN_PASSWORD):
            os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", password)
        # A wrong address is told at once, not after minutes of trying.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow.server.auth.client import AuthServiceClient

        self._client = AuthServiceClient(os.environ["MLFLOW_TRACKING_URI"])

    def add(self, name: str, *, admin: bool = False) -> None:
        """Makes a user, who reads everything and changes what is theirs; the password is asked for.

        Raises:
            OperatorError: If there is one of the name, or the password is short.
        """
        password = ask_password(name)
        self._call(self._client.create_user, name, password)
        if admin:
            self._call(self._client.update_user_admin, name, True)

    def set_password(self, name: str) -> None:
        """Changes a password; the new one is asked for.

        Raises:
            OperatorError: If there is no such user, or the password is short.
        """
        self._call(self._client.update_user_password, name, ask_password(name))

    def delete(self, name: str) -> None:
        """Deletes a user; their runs stay.

        Raises:
            OperatorError: If there is no such user.
        """
        self._call(self._client.delete_user, name)

    def grant(self, name: str, kind: str, thing: str, permission: str) -> None:
        """Sets what a user may do with an experiment or a registered model, given by its name.

        Raises:
            OperatorError: If there is no such user or thing.
        """
        if kind == "model":
            resource = ("registered_model", thing)
        else:
            from mlflow.tracking import MlflowClient

            experiment = self._call(MlflowClient().get_experiment_by_name, thing)
            if experiment is None:
                raise OperatorError(f'there is no experiment "{thing}"')
            resource = ("experiment", experiment.experiment_id)
        try:
            self._call(self._client.grant_user_permission, name, *resource, permission)
        except OperatorError as error:  # what was granted before is not changed by granting, only after taking it away
            if getattr(error.__cause__, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                raise
            self._call(self._client.revoke_user_permission, name, *resource)
            self._call(self._client.grant_user_permission, name, *resource, permission)

    @staticmethod
    def _call(function: Any, *arguments: Any) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return function(*arguments)
        except (MlflowException, ValueError) as error:  # a variable of MLflow's that is no number
            raise OperatorError(one_line(f"{os.environ['MLFLOW_TRACKING_URI']}: {error}")) from error


def ask_password(name: str) -> str:
    """A password for ``name``: typed twice at a terminal, else the first line of standard input.

    Raises:
        OperatorError: If it is short, or the two differ.
    """
    if sys.stdin.isatty():
        password = getpass.getpass(f"New password of {name}: ")
        if getpass.getpass("Again: ") != password:
            raise OperatorError("the two are not the same; nothing was changed")
    else:
        password = sys.stdin.readline().rstrip("\n")
    if len(password) < LEAST_PASSWORD:
        raise OperatorError(f"the password has {len(password)} characters; it needs {LEAST_PASSWORD} or more")
    return password
