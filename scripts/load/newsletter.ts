// A newsletter of a given size for load: multipart/alternative, an HTML part in quoted-printable with
// fifteen links, filler text and the footer that the law asks for. CRLF, dots stuffed, no final dot; `@@` stands where the generator puts
// a running number, so that no two messages are alike.

const LINKS = 15;
const FILLER = 'Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod te';

/** About `bytes` octets. */
export function newsletter(bytes: number): string {
  const head = [
    'From: News <news@demo.example>', 'To: undisclosed-recipients:;', 'Subject: Newsletter number @@', 'Date: Mon, 02 Nov 2026 08:00:00 +0000',
    'Message-ID: <bench.@@@demo.example>', 'MIME-Version: 1.0', 'Content-Type: multipart/alternative; boundary="=_parts"', '',
    '--=_parts', 'Content-Type: text/plain; charset=utf-8', '', 'The newsletter, number @@.', '',
    '--=_parts', 'Content-Type: text/html; charset=utf-8', 'Content-Transfer-Encoding: quoted-printable', '',
    '<!DOCTYPE html>', '<html><body style=3D"margin:0">',
  ];
  const tail = ['<p>Demo tenant, 1 Example Street, Example Town. privacy@demo.example</p>', '</body></html>', '', '--=_parts--', ''];
  const link = (i: number): string[] => [`<p><a style=3D"color:#336" href=3D"https://demo.example/story/${i}?is=`, `sue=3D@@&amp;from=3Dnewsletter">Story ${i}</a></p>`];
  const fixed = [...head, ...tail, ...Array.from({ length: LINKS }, (_, i) => link(i)).flat()].join('\r\n').length;
  const fillers = Math.max(0, Math.floor((bytes - fixed) / (FILLER.length + 2) / LINKS));
  const stories = Array.from({ length: LINKS }, (_, i) => [...link(i), ...Array.from({ length: fillers }, () => FILLER)]).flat();
  return [...head, ...stories, ...tail].join('\r\n');
}
