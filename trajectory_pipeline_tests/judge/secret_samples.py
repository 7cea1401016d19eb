"""Invented secrets of every form that redaction promises to find. None was ever valid."""

import base64
from pathlib import Path

_HEX = "0123456789abcdef"
_MIXED = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zAbC"

KEYS = {
    "openai": f"sk-proj-{_MIXED}{_MIXED}",
    "aws": "AKIAQ3EGRT5XAMPLE7QZ",
    "google": "AIzaSy" + (_MIXED * 2)[:33],
    "google, access": f"ya29.{_MIXED}",
    "google, client": f"GOCSPX-{_MIXED[:28]}",
    "github": "ghp_" + (_MIXED * 2)[:36],
    "github, fine": f"github_pat_{_MIXED}",
    "gitlab": f"glpat-{_MIXED[:20]}",
    "slack": "xoxb-123456789012-abcdefABCDEF",
    "slack, app": "xapp-1-A012345-abcdefABCDEF",
    "slack, hook": f"hooks.slack.com/services/T0001/B0001/{_MIXED[:24]}",
    "discord, hook": f"discord.com/api/webhooks/123456789012345678/{_MIXED}",
    "stripe": "sk_live_" + _MIXED[:24],
    "svix": f"whsec_{_MIXED}",
    "hugging face": "hf_" + _MIXED,
    "npm": "npm_" + (_MIXED * 2)[:36],
    "pypi": f"pypi-{_MIXED}{_MIXED}",
    "sendgrid": f"SG.{_MIXED[:22]}.{_MIXED}",
    "twilio": "SK" + _HEX * 2,
    "mailgun": "key-" + _HEX * 2,
    "digitalocean": "dop_v1_" + _HEX * 4,
    "databricks": f"dapi{_HEX * 2}",
    "groq": "gsk_" + (_MIXED * 2)[:52],
    "xai": f"xai-{_MIXED}{_MIXED}",
    "replicate": f"r8_{_MIXED}",
    "perplexity": f"pplx-{_MIXED}{_MIXED}",
    "tavily": f"tvly-{_MIXED}",
    "langsmith": f"lsv2_pt_{_MIXED}",
    "linear": f"lin_api_{_MIXED}",
    "notion": f"ntn_{_MIXED}{_MIXED[:12]}",
    "shopify": f"shpat_{_HEX * 2}",
    "vault": f"hvs.{_MIXED}",
    "age": f"AGE-SECRET-KEY-1{_MIXED.upper()}{_MIXED.upper()[:20]}",
    "doppler": f"dp.pt.{_MIXED}",
    "grafana": f"glsa_{_MIXED}",
    "new relic": f"NRAK-{_MIXED.upper()[:27]}",
    "supabase": f"sbp_{_HEX * 2}{_HEX[:8]}",
    "pinecone": f"pcsk_{_MIXED}_{_MIXED}",
    "airtable": f"pat{_MIXED[:14]}.{_HEX * 4}",
    "atlassian": f"ATATT3{_MIXED}{_MIXED}",
    "square": f"sq0atp-{_MIXED[:22]}",
    "telegram": "123456789:AA" + _MIXED[:33],
    "hugging face, organization": f"api_org_{_MIXED}",
    "mailchimp": f"{_HEX * 2}-us7",
    "fly": f"fm2_{_MIXED}{_MIXED}",
    "figma": f"figd_{_MIXED}",
    "postman": f"PMAK-{_HEX}{_HEX[:8]}-{_HEX * 2}01",
    "google, new": f"AQ.{_MIXED}{_MIXED}",
    "google, refresh": f"1//0{_MIXED}{_MIXED}",
    "fireworks": f"fw_{_MIXED[:24]}",
    "azure": f"aB38Q~{_MIXED}",
    "docker": f"dckr_pat_{_MIXED}",
    "nvidia": f"nvapi-{_MIXED}{_MIXED}",
    "brevo": f"xkeysib-{_HEX * 4}-{_MIXED[:16]}",
    "sentry": f"sntrys_{_MIXED}{_MIXED}",
    "posthog": f"phx_{_MIXED}",
    "pulumi": f"pul-{_HEX * 2}{_HEX[:8]}",
    "rubygems": f"rubygems_{_HEX * 3}",
    "terraform": f"{_MIXED[:14]}.atlasv1.{(_MIXED * 2)[:67]}",
    "bitbucket": f"ATBB{_MIXED}",
    "facebook": f"EAA{_MIXED}{_MIXED}",
    "alibaba": f"LTAI{_MIXED[:20]}",
    "tencent": f"AKID{_MIXED[:32]}",
    "resend": f"re_{_MIXED[:8]}_{_MIXED[:24]}",
    "supabase, new": f"sb_secret_{_MIXED}",
    "1password": f"ops_eyJ{_MIXED * 4}",
    "apify": f"apify_api_{_MIXED}",
    "e2b": f"e2b_{_HEX * 2}{_HEX[:8]}",
    "firecrawl": f"fc-{_HEX * 2}",
    "jina": f"jina_{_MIXED}{_MIXED}",
    "cerebras": f"csk-{_MIXED}{_MIXED[:14]}",
    "discord": f"M{_MIXED[:23]}.{_MIXED[:6]}.{_MIXED}",
    "amazon, marketplace": "amzn.mws.4ea38b7b-f563-7709-4bae-87aea4c15c4a",
    "bedrock": f"ABSK{_MIXED * 3}",
    "cloudflare": f"v1.0-{_HEX}{_HEX[:8]}-{_HEX * 8}",
    "one that says what it is": f"acme_live_{_MIXED[:24]}",
    "one named by one word": f"tok_{_MIXED[:24]}",
    "three letters": f"nfp_{_MIXED}",
    "letters alone": f"CLOJARS_{_MIXED}",
    "words and a dash": "access-sandbox-4ea38b7b-f563-7709-4bae-87aea4c15c4a",
    "openshift": f"sha256~{_MIXED}{_MIXED[:10]}",
    "rfc 8959": f"secret-token:{_MIXED}",
    "dynatrace": f"dt0c01.{_MIXED[:24]}.{_MIXED}{_MIXED[:30]}",
    "paseto": f"v2.local.{_MIXED}{_MIXED}",
    "github, of an app": f"v1.{_HEX * 2}{_MIXED[:20]}",
    "dropbox": f"sl.{_MIXED * 4}",
    "aws, session": f"IQoJb3JpZ2luX2Vj{_MIXED * 3}",
    "firebase": f"APA91b{_MIXED * 3}",
    "twitch": f"oauth:{_MIXED[:30]}",
    "instagram": f"IGQVJ{_MIXED * 2}",
    "recaptcha": f"6L{_MIXED[:6]}AAAAA{_MIXED[:27]}",
    "grafana, old": f"eyJrIjoi{_MIXED * 2}",
    "nuget": f"oy2{_MIXED.lower()}{_MIXED.lower()[:9]}",
    "crates.io": f"cio{_MIXED}",
    "artifactory": f"AKCp{_MIXED * 2}",
    "serverchan": f"SCT1234T{_MIXED[:28]}",
    "wallet": "xprv" + _MIXED.replace("0", "9") * 3,
    "wallet, one key": "5K" + (_MIXED.replace("0", "9") * 2)[:49],
    "pem in base64": f"LS0tLS1CRUdJTi{_MIXED * 3}",
}
"""One for each entry of ``patterns._KEY_FORMS``, in its order."""
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

# One form that secrets have in the wild a line, with marks for values; ``{E}`` is an escape character. Where the secret
# is none of them, it stands after ``=>>``. ``secret_forms.txt`` has more of them, by kind.
_FORMS = r'''
DB_PASS={P}
export SMTP_PASS='{P}'
"smtp_pass": "{P}"
mailPass: {P}
Authorization: GenieKey {T}
Authorization: Klaviyo-API-Key {T}
-H 'Authorization: Zoho-oauthtoken {T}' https://api.test
Authorization: OAuth oauth_consumer_key="ck", oauth_signature="{T}"
{"Authorization": "Custom {T}"}
headers["Authorization"] = "Snowflake Token=\"{T}\""
Proxy-Authorization: NTLM {T}
Authorization: {T}
X-Vendor-Api-Key: {T}
x-functions-key: {T}
X-Vault-Token: {T}
X-Auth-Token: {T}
PRIVATE-TOKEN: {T}
{E}[1;33mpassword: {E}[0m{P}
{E}[36mAPI_KEY{E}[0m={E}[31m{T}{E}[0m
[32mDB_PASSWORD[0m=[31m{P}[0m
\u001b[33mtoken\u001b[0m=\u001b[35m{T}\u001b[0m
- name: SMTP_PASSWORD\n  value: "{P}"
- name: API_TOKEN\n  value: {T}\n
{"name": "DB_PASSWORD", "value": "{P}"}
{"value": "{P}", "name": "DB_PASSWORD"}
{"Name":"DbPassword","Type":"SecureString","Value":"{P}"}
ParameterKey=DbPassword,ParameterValue={P}
<property><name>javax.jdo.option.ConnectionPassword</name><value>{P}</value></property>
<setting name="SmtpPassword"><value>{P}</value></setting>
<string name="api_key">{T}</string>
<key>password</key>\n<string>{P}</string>
<entry key="db.password">{P}</entry>
<db:password>{P}</db:password>
<Password><![CDATA[{P}]]></Password>
<connectionString password="{P}" user="sa"/>
variable "admin_password" {\n  type    = string\n  default = "{P}"\n}
resource "x" "y" {\n  master_password = "{P}"\n}
os.environ["API_SECRET"] = "{T}"
ENV['SECRET_KEY_BASE'] = '{T}'
$_ENV["DB_PASS"] = "{P}";
process.env.DB_PASSWORD = "{P}";
System.setProperty("db.password", "{P}");
define('DB_PASSWORD', '{P}');
config[:password] = "{P}"
:password => "{P}",
{:password "{P}"}
password <- "{P}"
set password "{P}"
(setq smtp-password "{P}")
const std::string password = "{P}";
let db_password: &str = "{P}";
val apiToken: String = "{T}"
password: str = "{P}"
my $password = "{P}";
@password = "{P}"
String password = new String("{P}");
password := []byte("{P}")
var dbPassword = "{P}"
#define WIFI_PASSWORD "{P}"
password = """{P}"""
api_token = SecretStr("{T}")
os.getenv("DB_PASSWORD", "{P}")
${DB_PASSWORD:-{P}}
SET @db_password = '{P}'
CREATE USER app WITH PASSWORD '{P}'
CREATE USER 'app'@'%' IDENTIFIED BY '{P}'
ALTER ROLE app PASSWORD '{P}'
INSERT INTO users (name, password) VALUES ('bob', '{P}')
requirepass {P}
machine api.test login bob password {P}
machine api.test\n  login bob\n  password tigerlily\n =>> tigerlily
db.test:5432:*:app:{P}
mysql -h db -u root -p{P} shop
mysqldump -uroot -p'{P}' shop > x.sql
sshpass -p {P} ssh bob@host
sshpass -p '{P}' ssh bob@host
docker login -u bob -p {P} registry.test
redis-cli -h cache -a {P} ping
7z x -p{P} a.7z
zip -P {P} -r a.zip a
ldapsearch -x -D cn=admin -w {P}
htpasswd -b .htpasswd bob {P}
smbclient //srv/share -U bob%{P}
sqlcmd -S srv -U sa -P {P}
openssl rsa -passin pass:{P} -in k.pem
keytool -storepass {P} -keystore k.jks
echo {P} | sudo -S apt update
echo "bob:{P}" | chpasswd
wget --http-password={P} https://api.test
curl --user bob:{P} https://api.test
curl -ubob:{P} https://api.test
mongosh -u bob -p {P}
psql "host=db user=app password={P}"
java -Djavax.net.ssl.keyStorePassword={P} -jar a.jar
https://acct.blob.test/c?sp=r&sig={T}%3D&se=2030
https://api.test/x?api_key={T}&y=1
https://api.test/x?auth={T}
https://bucket.test/o?X-Amz-Signature={T}{T}
https://api.test/cb?code={T}&state=1
amqp://app:{P}@mq:5672/vhost
mongodb+srv://app:{P}@cluster.test/db
postgresql+asyncpg://app:se/{P}@db/app
git clone https://bob:{P}@git.test/a.git
%22password%22%3A%22{P}%22
{&quot;password&quot;:&quot;{P}&quot;}
password%3D{P}%26user%3Dbob
{\u0022password\u0022:\u0022{P}\u0022}
{"auths":{"r.test":{"auth":"{T}=="}}}
Cookie: JSESSIONID={T}
Set-Cookie: connect.sid={T}; Path=/
document.cookie = "sid={T}"
session={T}
| name | password | role |\n|---|---|---|\n| bob | {P} | admin |
 name | password\n------+----------\n bob  | {P}\n
name,email,password\nbob,bob@x.test,{P}
"name";"password"\n"bob";"{P}"
name\tapi_key\nbob\t{T}
NAME     PASSWORD      ROLE\nbob      {P}    admin
Passwort: {P}
Das Passwort lautet {P}
Kennwort = {P}
Mot de passe : « {P} »
el password es {P}
senha: {P}
hasło: {P}
wachtwoord is {P}
пароль: {P}
密码：{P}
密码是{P}
パスワード: {P}
비밀번호: {P}
كلمة المرور: {P}
şifre: {P}
the password for the db is {P}
password for bob: {P}
password (admin): {P}
**Password:** {P}
**password**: `{P}`
`password`: `{P}`
pwd is {P}
Your PIN is 4821 =>> 4821
verification code: 482913 =>> 482913
Username: bob / Password: {P}
credentials: bob/{P}
user/pass: bob / {P}
login with bob:{P}
log in as bob / {P}
HTTPBasicAuth("bob", "{P}")
requests.get(u, auth=("bob", "{P}"))
client.login("bob@x.test", "{P}")
new NetworkCredential("bob", "{P}")
password:\n  - {P}
passwords:\n  - {P}\n
"api_keys": ["{T}", "other"]
password: >-\n  {P}\n
password:\n  value: {P}
"secret": {"value": "{T}"}
Content-Disposition: form-data; name="password"\r\n\r\n{P}\r\n--x
recovery phrase: apple banana cherry delta eagle forest grape hotel ice jungle kite lemon =>> cherry delta
MNEMONIC="apple banana cherry delta eagle forest grape hotel ice jungle kite lemon" =>> cherry delta
WIFI:T:WPA;S:home;P:{P};;
bob:$6$saltsalt${T}{T}
root:$2b$12${T}{T}{T}
PuTTY-User-Key-File-3: ssh-ed25519\nPrivate-Lines: 1\nMC4CAQAwBQYDK2Vw{T}\nPrivate-MAC: 00 =>> MC4CAQAwBQYDK2Vw
client-key-data: LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tCk1JSUV2UUlCQURBTkJna3Foa2lHOXcwQkFRRUZBQVND =>> ZBTkJna3Foa2lHOXcw
acme_live_{T}
acme-api-key-{T}
tok_secret_{T}
pass\u200bword: {P}
ghp_aB3dE5gH7jK9\u200bmN1pQ2rS4tU6vW8xY0zAbC1234 =>> mN1pQ2rS4tU6vW8
API key: {T}
api key = {T}
my secret key is {T}
private key {T}{T}
client secret value: {T}
Subscription-Key: {T}
ACCOUNT_KEY: {T}==
secretAccessKey: '{T}'
aws configure set aws_secret_access_key {T}
heroku config:set API_TOKEN={T}
npm config set //registry.test/:_authToken {T}
vault kv put secret/db password={P}
rabbitmqctl add_user bob {P}
xfreerdp /u:bob /p:{P} /v:host
net use Z: \\srv\share {P} /user:bob
nmcli dev wifi connect home password {P}
psk="{P}"
wpa_passphrase home {P}
ansible_password: {P}
ansible_become_pass={P}
spring.datasource.password={P}
jdbc:mysql://h/db?user=a&password={P}
jdbc:oracle:thin:app/{P}@db:1521:xe
sqlplus app/{P}@db
Data Source=h;User ID=sa;Pwd={P};
<input type="password" value="{P}">
<input name="api_token" type="hidden" value="{T}">
<meta name="csrf-token" content="{T}">
ODBC;UID=sa;PWD={P}
"private_key_id": "{T}"
kubectl create secret generic db --from-literal=password={P}
docker run -e MYSQL_ROOT_PASSWORD={P} mysql
token {T}
hunter: the token is {T}.
Bearer {T}
GRANT ALL ON *.* TO 'root'@'%' IDENTIFIED WITH mysql_native_password BY '{P}'
SET PASSWORD FOR 'bob'@'localhost' = PASSWORD('{P}');
https://x.webhook.office.com/webhookb2/1f-2@3f/IncomingWebhook/{T}/4a
https://hooks.zapier.com/hooks/catch/1234567/{T}/
https://open.feishu.cn/open-apis/bot/v2/hook/{T}
https://maker.ifttt.com/trigger/x/with/key/{T}
kubectl create secret generic x --from-literal=foo='{T}'
gh secret set NAME --body {T}
openssl enc -aes-256-cbc -k {P} -in x
net user bob {P} /add
schtasks /create /ru bob /rp {P}
ConvertTo-SecureString '{P}' -AsPlainText -Force
setx OPENAI_KEY {T}
DriverManager.getConnection(url, "sa", "{P}")
Password? {P}
Your temporary password is: {P}
Use `{P}` as the password
| Password | {P} |
<td>Password</td><td>{P}</td>
passwd|{P}|x
---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nComment: "x"\n{T}{T}\n---- END SSH2 ENCRYPTED PRIVATE KEY ----
tskey-auth-{T}-{T}
vercel_blob_rw_{T}_{T}
TOKEN_GITHUB={T}
SECRET_STRIPE: {T}
PASSWORD_FOR_ADMIN='{P}'
token.github={T}
tokens: [{T}, Ab12Cd34Ef56Gh78] =>> q8Zt3LwYx0Vb5NcRk2Hd
api_keys=({T})
recovery code: {T}
The password has been changed to {P}.
I reset the token to {T}
token was rotated: {T}
password (now {P})
Your new password ({P}) works
log in as bob with {P} as password
use `{T}` as the new token
password=<{T}>
Password\n{P}
"password": /* old */ "{T}"
password: !!str {P}
token,{T}
token.set("{T}")
setToken("{T}")
wifi key {T}
pepper: {T}
'''
_VALUES_IN_FORMS = {
    "{P}": "Zq7!mallow",
    "{W}": "marmalade",
    "{T}": "q8Zt3LwYx0Vb5NcRk2Hd",
    "{h}": "5f2ab91c03d7e8644b1f9a0e6c7d2385",
    "{H}": "5f2ab91c03d7e8644b1f9a0e6c7d2385a7b3c9d1e5f60718293a4b5c6d7e8f90",
    "{U}": "7c9e6679-7425-40de-944b-e07fc1f90ae7",
    "{B}": "Q2ZzT0pLdE5wV3hZYlJtSGdVYXNEZjRqS2w5eFB2MTI=",
}
"""Marks in forms: a password with a sign, a word as one, a token, hexadecimal digits, a UUID, 32 bytes in base64."""
_ESCAPES = {"\\\\n": "\0", "\\r": "\r", "\\n": "\n", "\\t": "\t", "\\u200b": "\u200b", "\0": "\\n"}


def _form(line: str) -> tuple[str, tuple[str, ...]]:
    text, _, secret = line.partition(" =>> ")
    for escape, character in _ESCAPES.items():
        text = text.replace(escape, character)
    secrets = (secret,) if secret else tuple(value for mark, value in _VALUES_IN_FORMS.items() if mark in text)
    for mark, value in {**_VALUES_IN_FORMS, "{E}": "\x1b"}.items():
        text = text.replace(mark, value)
    return text, secrets


_MORE_FORMS = Path(__file__).with_name("secret_forms.txt").read_text(encoding="utf-8")
FORMS = tuple(
    _form(line) for line in (*_FORMS.strip().splitlines(), *_MORE_FORMS.splitlines()) if not line.startswith("## ")
)
"""Texts, each with the secrets in it."""

NO_SECRETS = r"""
PASS: test_login_returns_2_rows
3 passed, 1 failed in 0.12s
password must be at least 8 characters
The password field is required.
"total_tokens": 4096, "max_tokens": 8000
token_type: bearer
"required": ["username", "password"]
def login(user, password):
password = getpass.getpass("Password: ")
password = os.environ["DB_PASSWORD"]
api_key=os.getenv("OPENAI_API_KEY")
self.password = password
token = get_token(user)
password: ${DB_PASSWORD}
password: {{ vault_password }}
primary_key: id
"key": "value"
key: partition-2026-11-23-07
git commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b
sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
call_UkmKBm7J2qMQxNZwzjZ6HJdq
toolu_01A09q90qw90lq917835lq9
chatcmpl-9aBcDeFgHiJkLmNoPqRsTuVwXyZ01
msg_01XFDUDYJgAACzvnptvVoYEL
run-3f2a91bc-1111-4222-8333-944444444444
https://example.test/a?page=2&key=name
mysql -u root -p shop
ssh -p 2222 bob@host
mkdir -p /srv/data
docker run -p 8080:80 nginx
cp -a src dst
bypass: 12
compass: north
The passport number is missing
monkey: 12345678901234567890
sort_key = created_at
access: read-only
auth: required
signature: def f(x: int) -> str
code: 200
exit code: 137
error code: 404123
postal code: 482913
pin: blue
| name | token |\n|---|---|\n| a | missing |
user,password\n
Authorization: see the docs
authorization is required for this endpoint
session: 12
secrets: inherit
tokens: 1523
I forgot my password yesterday
time 12:30:45, ratio 3:4
a.py:12:5: E501 line too long
import token, keyword
type: secret
SELECT password FROM users
login: bob
connect("localhost", "5432")
author: bob 2026-11-23
keyboard: us-intl-2
"cookie": true
the secret of success is hard work
passing 12 arguments
check_password("value")
https://docs.example.com/webhooks/using-webhooks-2/creating-a-webhook
https://example.com/key/name
| password | text |
<td>Token</td><td>missing</td>
set -x PATH /usr/bin
use `bcrypt` for the password
net user bob
"completion_tokens": 12, "id": "chatcmpl-9XyZAb12Cd34"
"token": null, "request_id": "req_01AbC23dEfGh45"
token: expired. See request req_01AbC23dEfGh45
The token expired (run Ab12Cd34Ef56 will retry; see below)
tokens used: 1204, model: gpt-4o-mini-2024-07-18
the secret scanner read S3BucketV2Client.java
the password field of UserProfileV2Form is required
password_policy: MinLength12Upper1
token_id=Ab12Cd34Ef56Gh78
known as the token holder
pass `filesystem` to the reader
Enter the password again to confirm
The password must have 2 digits and 1 sign
setPassword("password")
("username", "password", "email")
getattr(user, "password", None)
<label>Password:</label> <input name="pw"> <button>Submit</button>
<b>Password:</b> Enter at least eight characters
"passwords": {"type": "object", "description": "by user"}
tokens:\n  total: 1204\n  prompt: 1100
secrets:\n  name: db-credentials
password || null
password or token
api_key parameter
set the client_secret value
kpasswd 464/tcp
see /docs/reset-password/how-to-reset-your-password
https://kubernetes.example/docs/distribute-credentials-secure/#configure-all-key-value-pairs-in-a-secret
md-2026-11-23-notes-on-the-second-release-of-it
arc_welding_simulation_results_v2
hmac.new(key, f"{name}:{mark}", "sha256")
jwt.encode(payload, key, algorithm="HS256")
psycopg.connect("dbname=test host=localhost")
Client("https://example.test/v2")
git push -u origin main
useradd -m -s /bin/bash bob
tar -a -cf out.tar.gz src
sort -u a.txt -o b.txt
curl -u "$USER:$PASSWORD" https://example.test
your code is fine
the code 404 means that it was not found
pin the version to 2.1
Wi-Fi: 802.11ac
wifi: connected
login as bob and open 3 files
the kod is short
private: true
access: public
"refresh": 30
next: nonce
SELECT key FROM index_keys
message id 1234567890 is your latest one
password=$PASSWORD
password: "{{ vault.password }}"
password = settings.database_password
password="%s"
"password": "********"
"token": "<your token>"
""".strip().splitlines()
"""Texts that resemble forms of secrets, and have none in them."""

PERSONAL = {
    "email": "ada.lovelace+notes@example.org",
    "phone": "+44 20 7946 0958",
    "iban": "DE89 3704 0044 0532 0130 00",
    "card": "4111 1111 1111 1111",
    "ip": "203.0.113.77",
    "ip, six": "2001:db8:85a3::8a2e:370:7334",
}
