"""Invented secrets of every form that redaction promises to find. None was ever valid."""

import base64

_HEX = "0123456789abcdef"
_MIXED = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zAbC"

KEYS = {
    "openai": f"sk-proj-{_MIXED}{_MIXED}",
    "openai, old": f"sk-{_MIXED}",
    "anthropic": f"sk-ant-api03-{_MIXED}-{_MIXED}",
    "aws": "AKIAQ3EGRT5XAMPLE7QZ",
    "google": "AIzaSy" + (_MIXED * 2)[:33],
    "github": "ghp_" + (_MIXED * 2)[:36],
    "github, fine": f"github_pat_{_MIXED}",
    "gitlab": f"glpat-{_MIXED[:20]}",
    "slack": "xoxb-123456789012-abcdefABCDEF",
    "stripe": "sk_live_" + _MIXED[:24],
    "hugging face": "hf_" + _MIXED,
    "npm": "npm_" + (_MIXED * 2)[:36],
    "sendgrid": f"SG.{_MIXED[:22]}.{_MIXED}",
    "twilio": "SK" + _HEX * 2,
    "digitalocean": "dop_v1_" + _HEX * 4,
    "groq": "gsk_" + (_MIXED * 2)[:52],
    "telegram": "123456789:AA" + _MIXED[:33],
    "vault": f"hvs.{_MIXED}",
}
JWT = ".".join(
    base64.urlsafe_b64encode(part.encode()).decode().rstrip("=")
    for part in ('{"alg":"HS256","typ":"JWT"}', '{"sub":"1234567890","name":"Ada"}', "a signature that is none")
)
PRIVATE_KEY = (
    "-----BEGIN RSA PRIVATE KEY-----\n"
    + "\n".join(base64.b64encode(f"line {n} of a key that is none".encode()).decode() for n in range(4))
    + "\n-----END RSA PRIVATE KEY-----"
)
PASSWORD = "hun/ter2!"
"""Found only by the name before it: it has no form of its own."""

BY_NAME = (
    "password={}",
    "PGPASSWORD={} psql",
    '"password": "{}"',
    '{{"db_password":"{}"}}',
    '{{\\"password\\": \\"{}\\"}}',
    "passwd: '{}'",
    "api_key = {}",
    "X-Api-Key: {}",
    "client_secret={}&grant_type=x",
    "--password {} --host h",
    "--api-key={}",
    "curl -u ada:{} https://host",
    "postgresql://ada:{}@db.host:5432/letta",
    "redis://:{}@cache:6379/0",
    "Server=db;User Id=ada;Password={};Encrypt=yes",
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey={};EndpointSuffix=x",
    "<password>{}</password>",
    "the password is {}",
    "aws_secret_access_key = {}",
)

PERSONAL = {
    "email": "ada.lovelace+notes@example.org",
    "phone": "+44 20 7946 0958",
    "iban": "DE89 3704 0044 0532 0130 00",
    "card": "4111 1111 1111 1111",
    "ip": "203.0.113.77",
    "ip, six": "2001:db8:85a3::8a2e:370:7334",
}
