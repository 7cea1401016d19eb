"""HTTP as uvicorn speaks it, with a problem as the answer to what is no HTTP."""

import secrets

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from trajectory_pipeline.serve.problems import MEDIA_TYPE, problem_body


class ProblemProtocol(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """uvicorn's protocol; no app sees a request that cannot be read."""

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """Answer what is no HTTP request, and close the connection."""
        request_id = secrets.token_hex(8)
        body = problem_body(400, "This is no HTTP request that can be read: check its lines and headers.", request_id)
        head = (
            "HTTP/1.1 400 Bad Request",
            f"content-type: {MEDIA_TYPE}",
            f"content-length: {len(body)}",
            f"x-request-id: {request_id}",
            "connection: close",
        )
        self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        self.transport.close()
