import hashlib
import hmac

import pytest

from app.outputs import webhook
from app.outputs.webhook import WebhookFailed
from tests.support.receiver import Receiver

BODY = b'{"spikes":[]}'


def test_a_post_is_signed_with_the_secret(receiver: Receiver) -> None:
    webhook.post(f"{receiver.url}/hook?a=1", BODY, "secret", private=True)
    ((path, headers, body),) = receiver.got
    assert (path, body, headers["Content-Type"]) == ("/hook?a=1", BODY, "application/json")
    expected = hmac.new(b"secret", BODY, hashlib.sha256).hexdigest()
    assert headers["X-Eventstream-Signature"] == f"sha256={expected}"


def test_the_receiver_gets_the_host_name_from_the_url(receiver: Receiver) -> None:
    port = receiver.server_address[1]
    webhook.post(f"http://localhost:{port}/", BODY, None, private=True)
    ((_, headers, _),) = receiver.got
    assert headers["Host"] == f"localhost:{port}"
    assert webhook.SIGNATURE_HEADER not in headers


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "10.0.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0"),
        *("[::1]", "[::ffff:10.0.0.1]", "[64:ff9b::7f00:1]", "[fe80::1]", "[fc00::1]"),
        *("224.0.0.1", "100.64.0.1", "2130706433", "192.0.0.8", "[::127.0.0.1]"),
        *("[64:ff9b:1::7f00:1]", "[::ffff:0:127.0.0.1]", "[2002:7f00:1::]", "[2001:db8::1]"),
    ],
)
def test_an_address_that_is_not_public_is_refused(host: str) -> None:
    with pytest.raises(WebhookFailed, match="public internet") as caught:
        webhook.post(f"http://{host}:9/", BODY, None)
    assert not caught.value.again


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.status = 307
    with pytest.raises(WebhookFailed, match="307"):
        webhook.post(receiver.url, BODY, None, private=True)
    assert len(receiver.got) == 1


@pytest.mark.parametrize(("status", "again"), [(500, True), (429, True), (404, False)])
def test_an_error_says_whether_a_retry_makes_sense(
    receiver: Receiver, status: int, again: bool
) -> None:
    receiver.status = status
    with pytest.raises(WebhookFailed, match=str(status)) as caught:
        webhook.post(receiver.url, BODY, None, private=True)
    assert caught.value.again == again


def test_an_unavailable_receiver_may_be_tried_again() -> None:
    with pytest.raises(WebhookFailed) as caught:
        webhook.post("http://127.0.0.1:1/", BODY, None, private=True)
    assert caught.value.again
