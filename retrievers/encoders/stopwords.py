"""Stop words: per language the closed-class words that say least about what a text is on.

The lists are short on purpose: articles, the plain prepositions and conjunctions, unstressed pronouns, the commonest
forms of *be* and *have*. BM25's idf already gives such words next to no weight; dropping them makes the index smaller
and the search faster. Each is written as :func:`retrievers.encoders.tokens.fold` gives it, and is met before stemming.
The English list is the set of 33 words that Lucene has always used.
"""

from __future__ import annotations

_LISTS = {
    "danish": """
        af at da de dem den denne der deres det dette dig din du eller en end er et for fra fx ham han hans har havde
        hun hvis i ikke jeg jer man med men mig min når og også om os på sig sin skal som til var ved vi vil være å
    """,
    "dutch": """
        aan al als bij daar dan dat de den der deze die dit door een en er had heb hebben heeft hem het hier hij hun
        ik in is je maar me met mijn naar niet nog of om ons onze ook op over te tot uit u van voor was we werd wij
        worden wordt ze zij zijn zich zo
    """,
    "english": """
        a an and are as at be but by for if in into is it no not of on or such that the their then there these they
        this to was will with
    """,
    "finnish": """
        ei eivät että hän häntä he heidän ja joka jossa jota jos joiden jotka kanssa kuin kun me mikä minä mukaan
        mutta myös ne niiden niin nyt olen oli olivat olla on ovat se sekä sen siinä sinä sitä tai tämä tämän te tätä
        vaan vai
    """,
    "french": """
        a à ai au aux avec c ce ces cet cette d dans de des du elle elles en est et été eu il ils j je l la le les
        leur leurs lui m ma mais me mes mon n ne nos notre nous on ont ou par pas pour qu que qui s sa se ses son sont
        sur t ta te tu un une vos votre vous y
    """,
    "german": """
        als am an auch auf aus bei bin bis das dass dem den der des die durch ein eine einem einen einer eines er es
        für hat haben ich ihm ihn ihr ihre im in ist man mit nach nicht noch nur oder sein seine sich sie sind so über
        um und uns vom von vor war waren wie wir wird worden wurde zu zum zur
    """,
    "italian": """
        a ad agli ai al alla alle allo anche c che ci col con d da dagli dai dal dalla dalle degli dei del della delle
        dello di e ed era gli ha hanno i il in io l la le lei lo loro lui ma mi ne nei nel nella nelle nello noi non o
        per più quella quello questa questo se si sono su sua sugli sui sul sulla sulle suo ti tra tu un una uno è
    """,
    "norwegian": """
        at av da de dem den denne der deres det dette du eg eit ein eller en enn er et for fra ha hadde ham han hans
        har hun i ikke ikkje jeg man med men meg min når og også om oss på seg sin skal som så til var ved vi vil være
        å
    """,
    "portuguese": """
        a ao aos as com como da das de dela dele do dos e ela elas ele eles em entre era essa esse esta este eu foi há
        isso isto já lhe mais mas me na nas nem no nos não o os ou para pela pelas pelo pelos por que se sem ser seu
        seus sua suas são também te tem um uma à às é
    """,
    "russian": """
        а без бы был была были было быть в во вы где для до его ее её ей если есть еще ещё же за и из или им их к как
        ко ли мне мы на не него нее неё ни них но о об он она они оно от по под при с со так также то того только у
        уже что чтобы это этого этой этом этот я
    """,
    "spanish": """
        a al ante aunque como con cual cuando de del desde donde e el él ella ellas ellos en entre era es esa ese esta
        este esto fue ha han hasta hay la las le les lo los más me mi muy ni no nos o para pero por que se ser si sin
        sobre son su sus también te tu u un una unas unos y ya yo
    """,
    "swedish": """
        att av blev bli blir de dem den denna deras dess det detta dig din du där efter ej eller en ett från för ha
        hade han hans har hon i inte jag kan man med men mig min mot när och också om oss på samt sig sin ska som så
        till under upp ut var vi vid vill är än
    """,
}
_LISTS["porter"] = _LISTS["english"]
_LISTS["dutch_porter"] = _LISTS["dutch"]


def stopword_languages() -> list[str]:
    """The languages that have stop words."""
    return sorted(_LISTS)


def stop_words(language: str) -> frozenset[str]:
    """The stop words of a language, folded; none where it has no list."""
    return frozenset(_LISTS.get(language, "").split())
