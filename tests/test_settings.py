import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import SettingsError
from app.settings import ADDRESSES_FILE, SECRET_FILE, SmtpServer, read, without_secrets


def test_the_defaults_work_on_one_machine() -> None:
    settings = read({"DATA_DIR": "/nowhere"})
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert settings.broker_url == settings.redis_url
    assert (settings.host, settings.port, settings.flower_port) == ("127.0.0.1", 8000, 5555)
    assert (settings.click_hits, settings.click_scope) == (3, "user")
    assert str(settings.timezone) == "UTC"
    assert settings.admin_token is None


def test_lists_are_separated_by_commas() -> None:
    settings = read({"WRITE_KEYS": "a, b", "ALLOWED_ORIGINS": "https://x.com"})
    assert list(settings.write_keys) == ["a", "b"]
    assert set(settings.write_keys.values()) == {frozenset()}
    assert settings.allowed_origins == ("https://x.com",)


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        ("a=site1.com", {"a": {"site1.com"}}),
        (
            "a=site1.com,site2.com b=site1.com",
            {"a": {"site1.com", "site2.com"}, "b": {"site1.com"}},
        ),
        ("a=site1.com;b=site2.com; ", {"a": {"site1.com"}, "b": {"site2.com"}}),
        ("a=site1.com, site2.com", {"a": {"site1.com", "site2.com"}}),
        ("a, b; c=site1.com\nd", {"a": set(), "b": set(), "c": {"site1.com"}, "d": set()}),
        (
            "a=https://WWW.Site1.com:443,bücher.example",
            {"a": {"site1.com", "xn--bcher-kva.example"}},
        ),
        ("a=*.Site1.com", {"a": {"*.site1.com"}}),
        ("YQ==,Yg==", {"YQ==": set(), "Yg==": set()}),
        ("YQ===site1.com", {"YQ==": {"site1.com"}}),
        ("my key,another one", {"my key": set(), "another one": set()}),
    ],
)
def test_a_write_key_is_for_all_websites_or_for_the_listed_ones(
    value: str, keys: dict[str, set[str]]
) -> None:
    assert read({"WRITE_KEYS": value}).write_keys == keys
    assert read({"READ_KEYS": value}).read_keys == keys


def test_addresses_networks_and_users_can_be_excluded() -> None:
    settings = read({"EXCLUDED_ADDRESSES": "192.0.2.7, 2001:db8::/32", "EXCLUDED_USERS": "u1, 7"})
    assert list(map(str, settings.excluded_addresses)) == ["192.0.2.7/32", "2001:db8::/32"]
    assert settings.excluded_users == {"u1", "7"}


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("https://site1.com", "https://site1.com"),
        ("https://b\u00fccher.example", "https://xn--bcher-kva.example"),
        ("https://site1.com:443", "https://site1.com"),
        ("http://site1.com:80", "http://site1.com"),
        ("https://site1.com:8443", "https://site1.com:8443"),
        ("HTTPS://WWW.Site1.COM", "https://www.site1.com"),
        ("http://[2001:DB8:0::1]:8080", "http://[2001:db8::1]:8080"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("null", "null"),
    ],
)
def test_an_origin_is_normalized_to_the_form_that_browsers_send(written: str, sent: str) -> None:
    assert read({"ALLOWED_ORIGINS": written}).allowed_origins == (sent,)


@pytest.mark.parametrize(
    ("written", "network"),
    [
        ("192.0.2.7:51234", "192.0.2.7/32"),
        ("::ffff:192.0.2.7", "192.0.2.7/32"),
        ("[::ffff:192.0.2.7]:443", "192.0.2.7/32"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("[2001:db8::5]:4711", "2001:db8::5/128"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("192.0.2.0/255.255.255.0", "192.0.2.0/24"),
        ("::/0", "::/0"),
    ],
)
def test_an_excluded_address_is_accepted_in_any_of_its_forms(written: str, network: str) -> None:
    (found,) = read({"EXCLUDED_ADDRESSES": written}).excluded_addresses
    assert str(found) == network


def test_an_empty_variable_counts_as_unset() -> None:
    assert read({"PORT": "", "ADMIN_TOKEN": ""}) == read({})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "http"),
        ("PORT", "70000"),
        ("FLOWER_PORT", "0"),
        ("ALLOWED_ORIGINS", "https://*.example"),
        ("ALLOWED_ORIGINS", "https://site1.com/"),
        ("ALLOWED_ORIGINS", "site1.com"),
        ("ALLOWED_ORIGINS", "https://user@site1.com"),
        ("ALLOWED_ORIGINS", "https://site1.com:99999"),
        ("ALLOWED_ORIGINS", ","),
        ("RATE_LIMIT", "0/minute"),
        ("RETENTION_DAYS", "99999999999"),
        ("TIMEZONE", "Mars/Olympus"),
        ("TIMEZONE", "../etc/passwd"),
        ("CLICK_HITS", "0"),
        ("CLICK_SCOPE", "website"),
        ("RATE_LIMIT", "many"),
        ("QUEUE_LIMIT", "0"),
        ("CLICK_WINDOW", "-1"),
        ("CLICK_WINDOW", "86401"),
        ("FILTER_ROBOTS", "some"),
        ("EXCLUDED_ADDRESSES", "192.0.2.0/24, localhost"),
        ("EXCLUDED_ADDRESSES", "192.0.2.1/24"),
        ("TRUSTED_PROXIES", "-1"),
        ("TRUSTED_PROXIES", "127.0.0.1"),
        ("SPIKE_FACTOR", "0.5"),
        ("SPIKE_FACTOR", "nan"),
        ("SPIKE_MINIMUM", "0"),
        ("SPIKE_MINIMUM_CLICKS", "0"),
        ("SPIKE_WEBHOOK_PRIVATE", "maybe"),
        ("LOG_LEVEL", "LOUD"),
        ("USER_HASH_ROTATION", "week"),
        ("RETENTION_DAYS", "42"),
        ("ARCHIVE", "maybe"),
        ("STATEMENT_EMAIL", "nobody"),
        ("STATEMENT_EMAIL", "a@example.com, b"),
        ("STATEMENT_EMAIL", "Me <me@example.com>"),
        ("STATEMENT_EMAIL", "mé@example.com"),
        ("STATEMENT_EMAIL", "a b@example.com"),
        ("STATEMENT_EMAIL", ","),
        ("STATEMENT_EMAIL", ",".join(f"a{n}@example.com" for n in range(21))),
        ("STATEMENT_EMAIL", "a@example.com"),
        ("KAFKA_PUBLISH", "localhost:9092"),
        ("KAFKA_PUBLISH", "localhost:9092/a topic"),
    ],
)
def test_a_wrong_value_is_refused_in_a_sentence_that_names_it(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable) as caught:
        read({variable: value})
    assert value in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FLOWER_BASIC_AUTH", "password"),
        ("FLOWER_BASIC_AUTH", "user:pass,word"),
        ("WRITE_KEYS", " , "),
        ("CLICK_SECRET", " "),
        ("REDIS_URL", "localhost:6379"),
        ("BROKER_URL", "sqs://"),
        ("MONGODB_URL", "localhost"),
        ("WRITE_KEYS", "a=site1.com,"),
        ("WRITE_KEYS", "a=site1.com b="),
        ("WRITE_KEYS", "a=site1.com; =site2.com"),
        ("WRITE_KEYS", "a = site1.com"),
        ("WRITE_KEYS", "a=site1.com,b=site2.com"),
        ("WRITE_KEYS", "a=site1.com a=site2.com"),
        ("WRITE_KEYS", "a=site1.com b,a"),
        ("WRITE_KEYS", "a=site1.com/page"),
        ("WRITE_KEYS", "a=*"),
        ("WRITE_KEYS", "a=*."),
        ("WRITE_KEYS", "a=site*.com"),
        ("WRITE_KEYS", "a=ftp://site1.com"),
        ("SPIKE_WEBHOOK", "file:///etc/passwd"),
        ("SPIKE_WEBHOOK", "hooks"),
        ("ARCHIVE_URL", "/a/folder"),
        ("ARCHIVE_URL", "nothing://there"),
        ("WRITE_KEYS", "a=site1.com site2.com"),
        ("WRITE_KEYS", "a=site1.com; *.site2.com; b"),
        ("WRITE_KEYS", "a=site1.com b,site2.com"),
        ("ADMIN_TOKEN", "fifteen letters"),
        ("ADMIN_TOKEN", " " * 20),
        ("ADMIN_TOKEN", "a token with a blank behind it "),
        ("ADMIN_TOKEN", "\ta token with a tab before it"),
        ("USER_HASH_SECRET", "hunter2"),
        ("SHARE_SECRET", "hunter2"),
        ("READ_KEYS", ","),
        ("READ_KEYS", "hunter2=site1.com/page"),
        ("READ_KEYS", "hunter2=site1.com site2.com"),
        ("FLOWER_BASIC_AUTH", "user:hunter2,hunter3"),
        ("FLOWER_BASIC_AUTH", "user:hunter2é"),
        ("REDIS_URL", "redis://:hunter2/3@localhost:6379/0"),
        ("REDIS_URL", "redis://:4/hunter2@localhost:6379/0"),
        ("REDIS_URL", "redis://:[hunter2@localhost"),
        ("BROKER_URL", "amqp://user:hunter2/3@localhost//"),
        ("BROKER_URL", "amqp://one//;amqp://user:hunter2/3@two//"),
        ("MONGODB_URL", "mongodb://user:3/hunter2@localhost/x"),
        ("MONGODB_URL", "mongodb://user:hunter2?3@localhost/x"),
        ("KAFKA_CONFIG", "hunter2"),
        ("KAFKA_CONFIG", '{"security.protocol": "hunter2"}'),
        ("SPIKE_WEBHOOK", "ftp://hooks.example/hunter2"),
        ("ARCHIVE_URL", "nothing://user:hunter2@there"),
        ("STATEMENT_WEBHOOK", "ftp://hooks.example/hunter2"),
        ("SMTP_URL", "mail.example.com"),
        ("SMTP_URL", "http://user:hunter2@mail.example.com"),
        ("SMTP_URL", "smtp://user:hunter2/3@mail.example.com"),
        ("SMTP_URL", "smtp://user:3/hunter2@mail.example.com"),
        ("SMTP_URL", "smtp://user:3?hunter2@mail.example.com"),
        ("SMTP_URL", "smtp://user:3#hunter2@mail.example.com"),
        ("SMTP_URL", "smtp://user:hunter2@mail.example.com:port"),
        ("SMTP_URL", "smtp://user:hunter2@mail.example.com:99999"),
        ("SMTP_URL", "smtp://user:hunter2@mail.example.com/path"),
        ("SMTP_URL", "smtp://user:hunter2@mail.example.com?to=a"),
        ("SMTP_URL", "smtp://user:hunter2@mail.example.com?from=hunter2"),
        ("SMTP_URL", "smtp://user:hunter2@mail.example.com?from=a%0Ab@example.com"),
        ("SMTP_URL", "smtp://user:hunter2%C3%A9@mail.example.com"),
        ("SMTP_URL", "smtp://user:hunter2%0D%0Aa@mail.example.com"),
        ("SMTP_URL", "smtp://hunter2@mail.example.com"),
        ("SMTP_URL", "smtp://:hunter2@mail.example.com"),
        ("SMTP_URL", "smtp://"),
    ],
)
def test_a_wrong_value_that_may_hold_a_secret_is_named_but_not_shown(
    variable: str, value: str
) -> None:
    with pytest.raises(SettingsError, match=f"^{variable}=[.]{{3}} is wrong: ") as caught:
        read({variable: value})
    said = str(caught.value).partition(" is wrong: ")[2]
    assert "hunter" not in said
    assert "site1" not in said


@pytest.mark.parametrize(
    "others",
    [{"WRITE_KEYS": "a, hunter2 and more letters"}, {"ADMIN_TOKEN": "hunter2 and more letters"}],
)
def test_a_read_key_is_nothing_else_too(others: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"^READ_KEYS=[.]{3} is wrong: ") as caught:
        read({"READ_KEYS": "b, hunter2 and more letters"} | others)
    assert "hunter2" not in str(caught.value)


def test_settings_do_not_show_their_secrets() -> None:
    settings = read({"ADMIN_TOKEN": "hunter2 and more letters"})
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:hunter2@h:6379/0", "redis://h:6379/0"),
        ("redis://h/0?password=hunter2", "redis://h/0"),
        ("mongodb://u:hunter2@h1:1,h2:2/x?replicaSet=rs0", "mongodb://h1:1,h2:2/x"),
        ("amqp://u:hunter2@one//;amqp://u:hunter2@two//", "amqp://one//;amqp://two//"),
        ("ftp://u:hunter2@h/a: no answer? no", "ftp://h/a: no answer? no"),
        ("no URL", "no URL"),
    ],
)
def test_a_url_is_shown_without_its_secrets(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://localhost", SmtpServer("localhost", 25)),
        ("smtp://[::1]:2525/", SmtpServer("::1", 2525)),
        ("smtps://mail.example.com", SmtpServer("mail.example.com", 465, is_tls=True)),
        (
            "smtp://me%40example.com:a%2Fb%3F%40@mail.example.com",
            SmtpServer("mail.example.com", 587, "me@example.com", "a/b?@", "me@example.com"),
        ),
        (
            "smtps://me:secret@mail.example.com:1465?from=us@example.com",
            SmtpServer("mail.example.com", 1465, "me", "secret", "us@example.com", is_tls=True),
        ),
    ],
)
def test_a_mail_server_is_given_by_its_url(url: str, expected: SmtpServer) -> None:
    settings = read({"SMTP_URL": url, "STATEMENT_EMAIL": "a@example.com, b@example.com"})
    assert settings.smtp_url == expected
    assert settings.statement_email == ("a@example.com", "b@example.com")
    assert "secret" not in repr(settings.smtp_url)


def test_an_address_without_a_mail_server_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"STATEMENT_EMAIL=.* is wrong: Needs SMTP_URL"):
        read({"STATEMENT_EMAIL": "a@b.c"})


def test_a_topic_is_given_with_its_brokers() -> None:
    given = {"KAFKA_PUBLISH": "k1:9092,k2:9092/events", "KAFKA_CONFIG": '{"linger.ms": 20}'}
    settings = read(given)
    assert settings.kafka_publish == ("k1:9092,k2:9092", "events")
    assert settings.kafka_config == {"linger.ms": "20"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("hunter2", "Must be JSON"),
        ('["hunter2"]', "Must be JSON"),
        ('{"hunter": "2"}', "No such configuration property"),
        ('{"security.protocol": "NONE", "sasl.password": "hunter2"}', "security.protocol"),
    ],
)
def test_wrong_kafka_options_are_refused_but_not_shown(value: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=f"KAFKA_CONFIG=.* is wrong: .*{reason}") as caught:
        read({"KAFKA_CONFIG": value})
    assert "hunter2" not in str(caught.value)


def test_the_secret_that_up_created_is_found_in_the_data_directory(tmp_path: Path) -> None:
    (tmp_path / SECRET_FILE).write_text("made by itself, once")
    assert read({"DATA_DIR": str(tmp_path)}).user_hash_secret == "made by itself, once"
    given = read({"DATA_DIR": str(tmp_path), "USER_HASH_SECRET": "given by the operator"})
    assert given.user_hash_secret == "given by the operator"


@pytest.mark.parametrize("spoil", [Path.mkdir, lambda file: file.write_bytes(b"\xff"), Path.touch])
def test_a_secret_that_cannot_be_read_stops_the_start(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    spoil(tmp_path / SECRET_FILE)
    with pytest.raises(SettingsError, match="USER_HASH_SECRET"):
        read({"DATA_DIR": str(tmp_path)})


def test_the_archive_is_in_the_data_directory_unless_it_has_a_url(tmp_path: Path) -> None:
    assert read({"DATA_DIR": str(tmp_path)}).archive_url == f"file://{tmp_path}/archive"
    assert read({"ARCHIVE_URL": "memory://a"}).archive_url == "memory://a"


def test_every_wrong_value_is_named() -> None:
    with pytest.raises(SettingsError) as caught:
        read({"PORT": "x", "CLICK_HITS": "y"})
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("content", ["", "garbage", "[]", "1"])
def test_a_damaged_file_of_addresses_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / ADDRESSES_FILE).write_text(content)
    assert read({"DATA_DIR": str(tmp_path)}).redis_url == "redis://127.0.0.1:6379/0"


def test_the_servers_that_up_runs_are_found_through_the_data_directory(tmp_path: Path) -> None:
    addresses = {"REDIS_URL": "redis://127.0.0.1:1/0", "MONGODB_URL": "mongodb://127.0.0.1:2/x"}
    (tmp_path / ADDRESSES_FILE).write_text(json.dumps(addresses))
    found = read({"DATA_DIR": str(tmp_path)})
    assert (found.redis_url, found.mongodb_url) == tuple(addresses.values())
    given = read({"DATA_DIR": str(tmp_path), "REDIS_URL": "redis://other/0"})
    assert (given.redis_url, given.mongodb_url) == ("redis://other/0", addresses["MONGODB_URL"])


@pytest.mark.parametrize(
    "program",
    [
        ["eventstream", "up"],
        ["celery", "-A", "tasks", "worker"],
        ["gunicorn", "--config", "python:app.web.server", "wsgi:app"],
    ],
)
def test_a_wrong_value_stops_the_start_without_a_traceback(program: list[str]) -> None:
    stopped = subprocess.run(
        [Path(sys.executable).with_name(program[0]), *program[1:]],
        env={"PATH": "/usr/bin:/bin", "PORT": "http"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert stopped.returncode != 0
    assert "PORT='http' is wrong: Not a valid integer." in stopped.stderr
    assert "Traceback" not in stopped.stderr
