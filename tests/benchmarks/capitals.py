"""200 questions with one certain, short answer: the capitals of countries, and of states and provinces of three.

Left out are countries with several capitals, or one that is disputed or new, and capitals that are written with a full
stop. Several spellings of one name stand side by side.
"""

import re
import unicodedata
from typing import Any

GRAMMAR = r'start: "The capital is " /\p{Lu}[^.,\n]{1,30}/ /[.,]/'
"""What an answer is held to, so that there is a name to read in each; it ends at a comma or full stop."""
PATTERN = "is ([^.,]+)"
"""The name in an answer, for votes."""

TRIED = """
    France: Paris; Germany: Berlin; Italy: Rome; Spain: Madrid; Portugal: Lisbon; Austria: Vienna; Greece: Athens;
    Poland: Warsaw; Hungary: Budapest; Norway: Oslo; Sweden: Stockholm; Denmark: Copenhagen; Finland: Helsinki;
    Ireland: Dublin; Japan: Tokyo; China: Beijing; India: New Delhi; Egypt: Cairo; Kenya: Nairobi; Peru: Lima;
    Cuba: Havana; Canada: Ottawa; Australia: Canberra; Russia: Moscow; Turkey: Ankara; Iran: Tehran; Iraq: Baghdad;
    Thailand: Bangkok; Argentina: Buenos Aires; Chile: Santiago
"""
"""On these, task and grammar were chosen by what one draw gets right (77 of 90). None is among the questions."""

COUNTRIES = """
    Afghanistan: Kabul; Albania: Tirana; Algeria: Algiers; Andorra: Andorra la Vella; Angola: Luanda;
    Armenia: Yerevan; Azerbaijan: Baku; the Bahamas: Nassau; Bahrain: Manama; Bangladesh: Dhaka/Dacca;
    Barbados: Bridgetown; Belarus: Minsk; Belgium: Brussels; Belize: Belmopan; Bhutan: Thimphu;
    Bosnia and Herzegovina: Sarajevo; Botswana: Gaborone; Brazil: Brasilia; Brunei: Bandar Seri Begawan;
    Bulgaria: Sofia; Burkina Faso: Ouagadougou; Cambodia: Phnom Penh; Cameroon: Yaounde; Cape Verde: Praia;
    the Central African Republic: Bangui; Chad: N'Djamena; Colombia: Bogota; the Comoros: Moroni; Costa Rica: San Jose;
    Croatia: Zagreb; Cyprus: Nicosia; the Czech Republic: Prague; the Democratic Republic of the Congo: Kinshasa;
    Djibouti: Djibouti/Djibouti City; Dominica: Roseau; the Dominican Republic: Santo Domingo; East Timor: Dili;
    Ecuador: Quito; El Salvador: San Salvador; Eritrea: Asmara; Estonia: Tallinn; Ethiopia: Addis Ababa; Fiji: Suva;
    Gabon: Libreville; the Gambia: Banjul; Ghana: Accra; Guatemala: Guatemala City; Guinea: Conakry;
    Guinea-Bissau: Bissau; Guyana: Georgetown; Haiti: Port-au-Prince; Honduras: Tegucigalpa; Iceland: Reykjavik;
    Jamaica: Kingston; Jordan: Amman; Kuwait: Kuwait City; Kyrgyzstan: Bishkek; Laos: Vientiane; Latvia: Riga;
    Lebanon: Beirut; Lesotho: Maseru; Liberia: Monrovia; Libya: Tripoli; Liechtenstein: Vaduz; Lithuania: Vilnius;
    Luxembourg: Luxembourg/Luxembourg City; Madagascar: Antananarivo; Malawi: Lilongwe; the Maldives: Male;
    Mali: Bamako; Malta: Valletta; Mauritania: Nouakchott; Mauritius: Port Louis; Mexico: Mexico City;
    Micronesia: Palikir; Moldova: Chisinau; Mongolia: Ulaanbaatar/Ulan Bator; Morocco: Rabat; Mozambique: Maputo;
    Myanmar: Naypyidaw/Nay Pyi Taw; Namibia: Windhoek; Nepal: Kathmandu; New Zealand: Wellington; Nicaragua: Managua;
    Niger: Niamey; Nigeria: Abuja; North Korea: Pyongyang; North Macedonia: Skopje; Oman: Muscat; Pakistan: Islamabad;
    Palau: Ngerulmud; Panama: Panama City; Papua New Guinea: Port Moresby; Paraguay: Asuncion; the Philippines: Manila;
    Qatar: Doha; the Republic of the Congo: Brazzaville; Romania: Bucharest; Rwanda: Kigali; Saint Lucia: Castries;
    Saint Kitts and Nevis: Basseterre; Saint Vincent and the Grenadines: Kingstown; Samoa: Apia;
    San Marino: San Marino/City of San Marino; Sao Tome and Principe: Sao Tome; Saudi Arabia: Riyadh; Senegal: Dakar;
    Serbia: Belgrade; the Seychelles: Victoria; Sierra Leone: Freetown; Slovakia: Bratislava; Slovenia: Ljubljana;
    the Solomon Islands: Honiara; Somalia: Mogadishu; South Korea: Seoul; South Sudan: Juba; Sudan: Khartoum;
    Suriname: Paramaribo; Syria: Damascus; Tajikistan: Dushanbe; Togo: Lome; Tonga: Nuku'alofa;
    Trinidad and Tobago: Port of Spain; Tunisia: Tunis; Turkmenistan: Ashgabat; Tuvalu: Funafuti; Uganda: Kampala;
    Ukraine: Kyiv/Kiev; the United Arab Emirates: Abu Dhabi; the United Kingdom: London; Uruguay: Montevideo;
    Uzbekistan: Tashkent; Vanuatu: Port Vila; Venezuela: Caracas; Vietnam: Hanoi; Zambia: Lusaka; Zimbabwe: Harare
"""
STATES = """
    Alabama: Montgomery; Alaska: Juneau; Arizona: Phoenix; Arkansas: Little Rock; California: Sacramento;
    Colorado: Denver; Connecticut: Hartford; Delaware: Dover; Florida: Tallahassee; Georgia: Atlanta; Hawaii: Honolulu;
    Idaho: Boise; Illinois: Springfield; Indiana: Indianapolis; Iowa: Des Moines; Kansas: Topeka; Kentucky: Frankfort;
    Louisiana: Baton Rouge; Maine: Augusta; Maryland: Annapolis; Massachusetts: Boston; Michigan: Lansing;
    Mississippi: Jackson; Missouri: Jefferson City; Montana: Helena; Nebraska: Lincoln; Nevada: Carson City;
    New Hampshire: Concord; New Jersey: Trenton; New Mexico: Santa Fe; New York: Albany; North Carolina: Raleigh;
    North Dakota: Bismarck; Ohio: Columbus; Oklahoma: Oklahoma City; Oregon: Salem; Pennsylvania: Harrisburg;
    Rhode Island: Providence; South Carolina: Columbia; South Dakota: Pierre; Tennessee: Nashville; Texas: Austin;
    Utah: Salt Lake City; Vermont: Montpelier; Virginia: Richmond; Washington: Olympia; West Virginia: Charleston;
    Wisconsin: Madison; Wyoming: Cheyenne
"""
PROVINCES = """
    Alberta: Edmonton; British Columbia: Victoria; Manitoba: Winnipeg; New Brunswick: Fredericton;
    Nova Scotia: Halifax; Ontario: Toronto; Prince Edward Island: Charlottetown; Saskatchewan: Regina;
    New South Wales: Sydney; Queensland: Brisbane; South Australia: Adelaide; Tasmania: Hobart;
    the Australian state of Victoria: Melbourne; Western Australia: Perth
"""


def capital_questions() -> list[dict[str, Any]]:
    """Rows of a dataset, always the same: a `question`, and the spellings that are right as `accepted`."""
    written = [_read(COUNTRIES, ""), _read(STATES, "the US state of "), _read(PROVINCES, "")]
    return [row for rows in written for row in rows]


def names_capital(answer: str | None, accepted: list[str]) -> bool:
    """Whether an answer names an accepted spelling and nothing else; case, accents and all but letters aside."""
    named = re.fullmatch(r"The capital is ([^.,\n]+)[.,]", answer or "")
    return named is not None and _letters(named[1]) in map(_letters, accepted)


def _read(table: str, kind: str) -> list[dict[str, Any]]:
    rows = []
    for entry in table.split(";"):
        place, _, names = " ".join(entry.split()).partition(": ")
        rows.append({"question": f"What is the capital of {kind}{place}?", "accepted": names.split("/")})
    return rows


def _letters(name: str) -> str:
    return re.sub("[^a-z]", "", unicodedata.normalize("NFKD", name).casefold())
